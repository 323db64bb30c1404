// Parses the expressions of a template; the base of the parser for whole templates.
#pragma once

#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>

#include "coordinator/text/jinja_ast.h"
#include "coordinator/text/jinja_cursor.h"

namespace lowkey::coordinator::jinja {

// Recursive descent, one function per level of precedence. Throws SyntaxError.
class ExpressionParser : protected TokenCursor {
 protected:
  using Names = std::initializer_list<std::string_view>;

  using TokenCursor::TokenCursor;

  ExpressionPtr parse_tuple();  // an expression, or several with commas between: a list
  ExpressionPtr parse_expression();
  ExpressionPtr parse_or();  // an expression without "a if b"

 private:
  struct Nesting;

  std::unique_ptr<Expression> make(ExpressionKind kind, std::string name = {}) const;
  ExpressionPtr literal(Value value) const;
  ExpressionPtr binary(ExpressionKind kind, std::string name, ExpressionPtr left, ExpressionPtr right) const;
  // Adds an operand (which may be null) and keeps the depth: chains like a + b + c grow to the left without
  // recursion.
  void add(Expression& to, ExpressionPtr operand) const;
  void deepen(Expression& to, const Expression& operand) const;

  ExpressionPtr parse_and();
  ExpressionPtr parse_not();
  std::string accept_comparison();
  ExpressionPtr parse_comparison();
  template <class Next>
  ExpressionPtr parse_arithmetic(Names operators, Next next);
  ExpressionPtr parse_sum();
  ExpressionPtr parse_concatenation();
  ExpressionPtr parse_product();
  ExpressionPtr parse_filtered();
  ExpressionPtr parse_filter(ExpressionPtr value);
  ExpressionPtr parse_test(ExpressionPtr value);
  bool begins_operand() const;
  ExpressionPtr parse_unary();
  ExpressionPtr parse_postfix(ExpressionPtr value);
  ExpressionPtr parse_subscript(ExpressionPtr value);  // behind "["
  void parse_arguments(Expression& call);              // behind "("
  ExpressionPtr parse_primary();
  ExpressionPtr parse_string();
  ExpressionPtr parse_number();
  ExpressionPtr parse_name();
  ExpressionPtr parse_bracketed();  // behind "(": a bracketed expression or a tuple, which is a list here
  void parse_items(Expression& list, std::string_view closer);
  ExpressionPtr parse_dict();

  int nesting_ = 0;
};

}  // namespace lowkey::coordinator::jinja
