"""What a CTest JUnit file says, for whoever reads only the end of a log.

usage: results.py FILE            the failed tests with the end of what they printed; the skipped ones by reason, counted
       results.py FILE --again    a regular expression of the failed tests that deserve another run; nothing where there are none
"""

import collections
import re
import sys
import xml.etree.ElementTree as xml

LINES = 60  # of a failed test's output
FEW = 3     # failed tests; where there are more, it was not chance


def bare(name):
    """A test's name without what CTest says of its parameter."""
    return name.split("  #")[0]


def reason(case):
    """The line after googletest's 'Skipped', or after 'SKIPPED:' of a Python test."""
    output = case.findtext("system-out") or ""
    match = re.search(r": Skipped\n(.+)", output) or re.search(r"SKIPPED: (.+)", output)
    return match.group(1).strip() if match else (case.find("skipped").get("message") or "no reason given")


def family(name):
    """Instances of a parametrized test (Suite/Test.Does/parameter) are one line."""
    return re.sub(r"(\.\w+)/\S+$", r"\1", bare(name))


def failed(cases):
    return [case for case in cases if case.find("failure") is not None or case.get("status") == "fail"]


def again(cases):
    """A few failed tests of real processes and clocks: a machine that stood still for seconds is no defect. What passes alone
    is still named, so that a race does not go unseen."""
    names = [case.get("name") for case in failed(cases)]
    if not names or len(names) > FEW or not all(name.startswith(("integration/", "fault/")) for name in names):
        return ""
    return "^(" + "|".join(re.sub(r"([][.*+?^$()|\\])", r"\\\1", name) for name in names) + ")$"


def main():
    cases = xml.parse(sys.argv[1]).getroot().findall("testcase")
    if "--again" in sys.argv:
        print(again(cases))
        return
    for case in failed(cases):
        print(f"FAILED {bare(case.get('name'))}")
        print("\n".join("  " + line[:200] for line in (case.findtext("system-out") or "").splitlines()[-LINES:]))
    skipped = [case for case in cases if case.find("skipped") is not None]
    counted = collections.Counter((family(case.get("name")), reason(case)) for case in skipped)
    for (name, why), count in counted.items():
        print(f"skipped {name}{f' ({count})' if count > 1 else ''}: {why}")
    print(f"{len(cases)} tests: {len(failed(cases))} failed, {len(skipped)} skipped")


main()
