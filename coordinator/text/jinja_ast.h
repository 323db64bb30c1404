// A parsed template.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "coordinator/text/jinja_value.h"

namespace lowkey::coordinator::jinja {

struct Expression;
using ExpressionPtr = std::unique_ptr<const Expression>;

enum class ExpressionKind {
  kLiteral,    // literal
  kName,       // name
  kAttribute,  // operands[0].name
  kIndex,      // operands[0][operands[1]]
  kSlice,      // operands[0][operands[1]:operands[2]:operands[3]], null where left out
  kCall,       // operands[0](operands[1..], named)
  kFilter,     // operands[0] | name(operands[1..], named)
  kTest,       // operands[0] is [not] name(operands[1..])
  kNot,
  kNegate,
  kArithmetic,  // operands[0] name operands[1]; name is + - * / // % ~
  kComparison,  // operands[0] operators[0] operands[1] operators[1] operands[2] ...
  kAnd,
  kOr,
  kConditional,  // operands[0] if operands[1] else operands[2] (null: undefined)
  kList,
  kDict,  // key, value, key, value ...
};

struct Expression {
  ExpressionKind kind;
  int line = 0;
  int depth = 1;  // of the tree below; bounded by the parser
  std::string name;
  Value literal;
  std::vector<ExpressionPtr> operands;
  std::vector<std::pair<std::string, ExpressionPtr>> named;
  std::vector<std::string> operators;
  bool negated = false;
};

struct Statement;
using Block = std::vector<std::unique_ptr<const Statement>>;

enum class StatementKind { kText, kOutput, kIf, kFor, kSet, kSetBlock, kMacro, kBreak, kContinue };

struct Statement {
  struct Branch {
    ExpressionPtr condition;  // null: else
    Block body;
  };
  struct Parameter {
    std::string name;
    ExpressionPtr fallback;  // null: undefined
  };

  StatementKind kind;
  int line = 0;
  std::string text;                   // kText; kMacro: its name; kSet: the attribute of a namespace, or empty
  std::vector<std::string> targets;   // kSet, kSetBlock, kFor: names; several unpack a sequence
  ExpressionPtr value;                // kOutput, kSet; kFor: what is iterated
  ExpressionPtr condition;            // kFor: the filter, or null
  std::vector<Branch> branches;       // kIf
  std::vector<Parameter> parameters;  // kMacro
  Block body;                         // kFor, kSetBlock, kMacro
  Block otherwise;                    // kFor: when nothing was iterated
};

}  // namespace lowkey::coordinator::jinja
