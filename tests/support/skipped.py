"""Names the skipped tests of a CTest JUnit file with their reasons, and counts them: skipped.py FILE."""

import re
import sys
import xml.etree.ElementTree as xml


def reason(case):
    """The line after googletest's 'Skipped', or after 'SKIPPED:' of a Python test."""
    output = case.findtext("system-out") or ""
    match = re.search(r": Skipped\n(.+)", output) or re.search(r"SKIPPED: (.+)", output)
    return match.group(1).strip() if match else (case.find("skipped").get("message") or "no reason given")


def main():
    cases = xml.parse(sys.argv[1]).getroot().findall("testcase")
    skipped = [case for case in cases if case.find("skipped") is not None]
    for case in skipped:
        print(f"{case.get('name')}: {reason(case)}")
    print(f"{len(skipped)} of {len(cases)} tests skipped")


main()
