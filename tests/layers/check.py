#!/usr/bin/env python3
"""The rules of the tree that a compiler does not know. Prints one `file:line: what` per violation; exit code 1 if any.

  layers     includes and CMake links point downwards only (LAYERS); folders have no cycles; product never includes tests
  sizes      files, and functions by their closing brace (the tree is formatted, so the brace's column finds the end)
  words      no leftovers, no paths of one machine
  metrics    every metric of the catalog is fed somewhere

Exceptions stand in waivers.txt, each with its reason; one that is not needed any more is a violation too.
"""
import argparse
import collections
import os
import re
import sys

# A layer may use itself and those before it; the ones in the same set do not know each other.
LAYERS = [{"base"}, {"monitoring"}, {"kernels"}, {"transport"}, {"kvstore"}, {"worker", "coordinator"}, {"cli"}]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 70
MAX_KERNEL_LINES = 150  # .cu and .cuh: unrolled by hand
CODE = (".h", ".cc", ".cu", ".cuh")
TEXT = CODE + (".py", ".txt", ".cmake", ".md", ".yaml", ".yml", ".json", ".proto", ".sh", "")
SKIPPED_FOLDERS = {".git", "build", "__pycache__", "golden", "demo-model", "corpus", "node_modules"}
WORDS = [
    (re.compile(r"\b(TODO|FIXME|XXX|HACK)\b"), "leftover"),
    (re.compile(r"\bnot (yet )?implemented\b", re.I), "leftover"),
    (re.compile(r"(?<![\w.$}])/(home|root|work)/[\w.]"), "path of one machine"),
]


def files_of(root):
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(f for f in folders if f not in SKIPPED_FOLDERS)
        for name in sorted(names):
            if name != ".git":  # a file in a linked checkout
                yield os.path.relpath(os.path.join(folder, name), root)


def read(root, path):
    with open(os.path.join(root, path), encoding="utf-8", errors="replace") as f:
        return f.read().splitlines()


def top(path):
    return path.split("/")[0]


def may_use(user, used):
    return user == used or LEVEL[used] < LEVEL[user]


class Checker:
    def __init__(self, root, waivers):
        self.root, self.waivers, self.used_waivers, self.violations = root, waivers, set(), []
        self.paths = [p for p in files_of(root) if p.endswith(TEXT) or "." not in os.path.basename(p)]

    def report(self, path, line, what, waiver=None):
        if waiver in self.waivers:
            self.used_waivers.add(waiver)
        else:
            self.violations.append(f"{path}:{line}: {what}")

    def run(self):
        edges = collections.defaultdict(dict)  # folder -> included folder -> where
        for path in self.paths:
            lines = read(self.root, path)
            if path.endswith(CODE) and top(path) in LEVEL:
                self.includes(path, lines, edges)
            if os.path.basename(path) == "CMakeLists.txt" and top(path) in LEVEL:
                self.links(path, lines)
            if path.endswith(CODE + (".py",)):
                self.sizes(path, lines)
            self.words(path, lines)
        self.cycles(edges)
        self.metrics()
        for waiver in sorted(self.waivers - self.used_waivers):
            self.violations.append(f"tests/layers/waivers.txt:1: nothing needs the waiver of {waiver}")
        return self.violations

    def includes(self, path, lines, edges):
        for number, line in enumerate(lines, 1):
            match = re.match(r'\s*#\s*include\s+"([^"]+)"', line)
            if not match:
                continue
            used = match.group(1)
            if top(used) == "tests":
                self.report(path, number, f"product code includes {used}")
            elif top(used) not in LEVEL:
                self.report(path, number, f'"{used}" is not a full path from the root')
            elif not may_use(top(path), top(used)):
                self.report(path, number, f"{top(path)} includes {used}: includes go downwards only")
            else:
                here, there = os.path.dirname(path), os.path.dirname(used)
                if here != there:
                    edges[here].setdefault(there, f"{path}:{number}")

    def links(self, path, lines):
        for number, line in enumerate(lines, 1):
            for name in re.findall(r"\blowkey_([a-z]+)(?:_[a-z_]+)?\b", line.split("#")[0]):
                if name in LEVEL and not may_use(top(path), name):
                    self.report(path, number, f"{top(path)} links lowkey_{name}: links go downwards only")

    def cycles(self, edges):
        state = {}

        def visit(folder, trail):
            state[folder] = "open"
            for used in sorted(edges.get(folder, {})):
                if state.get(used) == "open":
                    loop = trail[trail.index(used):] + [used] if used in trail else [folder, used]
                    path, line = edges[folder][used].split(":")
                    self.report(path, line, "folders include each other: " + " -> ".join(loop))
                elif used not in state:
                    visit(used, trail + [used])
            state[folder] = "done"

        for folder in sorted(edges):
            if folder not in state:
                visit(folder, [folder])

    def sizes(self, path, lines):
        if len(lines) > MAX_FILE_LINES:
            self.report(path, len(lines), f"{len(lines)} lines, at most {MAX_FILE_LINES}", path)
        if not path.endswith(CODE):
            return
        limit = MAX_KERNEL_LINES if path.endswith((".cu", ".cuh")) else MAX_FUNCTION_LINES
        for name, begin, end in functions(lines):
            if end - begin + 1 > limit:
                self.report(path, begin, f"{name}() has {end - begin + 1} lines, at most {limit}", f"{path}:{name}")

    def words(self, path, lines):
        if path.startswith("tests/layers/"):
            return  # the patterns themselves
        for number, line in enumerate(lines, 1):
            for pattern, what in WORDS:
                match = pattern.search(line)
                if match:
                    self.report(path, number, f"{what}: {match.group(0)}", f"{path}:{match.group(0)}")

    def metrics(self):
        catalog = "monitoring/catalog.h"
        if catalog not in self.paths:
            return
        declared = {}
        for number, line in enumerate(read(self.root, catalog), 1):
            match = re.match(r"\s*X\((k\w+),", line)
            if match:
                declared[match.group(1)] = number
        fed = set()
        for path in self.paths:
            if path.endswith((".h", ".cc")) and top(path) in LEVEL and path != catalog:
                for line in read(self.root, path):
                    fed.update(re.findall(r"\bk[A-Z]\w*", line))
        for name, number in declared.items():
            if name not in fed:
                self.report(catalog, number, f"{name} is declared and never fed", f"metric:{name}")


# A block is a function when its head has parentheses and does not open with one of these.
NOT_A_FUNCTION = re.compile(
    r"^\s*(namespace|class|struct|union|enum|extern|if|else|for|while|switch|do|try|catch|return|case|default)\b|=\s*$")


def functions(lines):
    """(name, first line, last line) of every function of a formatted file; lambdas count as part of their function."""
    found = []
    number = 0
    while number < len(lines):
        line = lines[number]
        begin = number
        if line.endswith("{") and not line.lstrip().startswith(("//", "#", "}")):
            indent = len(line) - len(line.lstrip())
            # The head: back over continuation lines to the one that does not go on.
            while begin > 0 and lines[begin - 1].strip() and not re.search(r"([;{}:]|\*/)\s*$", lines[begin - 1]) \
                    and not lines[begin - 1].lstrip().startswith(("//", "#")):
                begin -= 1
            head = " ".join(part.strip() for part in lines[begin:number + 1])
            if "(" in head and not NOT_A_FUNCTION.match(head):
                column = min(indent, len(lines[begin]) - len(lines[begin].lstrip()))
                end = number + 1
                while end < len(lines) and not re.match(r" {%d}\}" % column, lines[end]):
                    end += 1
                name = re.search(r"([\w~]+)\s*\(", head)
                found.append((name.group(1) if name else "?", begin + 1, min(end + 1, len(lines))))
                number = end
        number += 1
    return found


def read_waivers(path):
    waivers = set()
    if os.path.exists(path):
        with open(path, encoding="utf-8") as f:
            for number, line in enumerate(f, 1):
                line = line.split("#")[0].strip()
                if not line:
                    continue
                what, _, reason = line.partition(" ")
                if not reason.strip():
                    sys.exit(f"{path}:{number}: a waiver needs a reason")
                waivers.add(what)
    return waivers


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", help="the source tree")
    root = parser.parse_args().root
    violations = Checker(root, read_waivers(os.path.join(root, "tests/layers/waivers.txt"))).run()
    for violation in violations:
        print(violation)
    print(f"layers: {len(violations)} violations")
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
