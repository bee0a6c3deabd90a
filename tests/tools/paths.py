"""Where things lie: the repository, what tests read, what they start."""

import pathlib

TESTS = pathlib.Path(__file__).resolve().parents[1]
ROOT = TESTS.parent
GOLDEN = TESTS / 'golden'
PROGRAMS = TESTS / 'programs'
SHARED_DATA = ROOT.parent / 'shared' / 'data'
