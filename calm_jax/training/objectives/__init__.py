"""Objectives beside Eq. 6 of CALM, one file each.

Each wraps another one, `training.Objective` in the end: it chooses the exits
that are read in a step, drops layers, or adds to the loss. One more is one more
file here.
"""
