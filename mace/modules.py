"""Stands where scripts look for `mace.modules` of mace-torch: importing it says what to use instead."""

from mace.elsewhere import missing

raise missing(__name__)
