"""Stands where scripts look for `mace.tools` of mace-torch: importing it says what to use instead."""

from mace.elsewhere import missing

raise missing(__name__)
