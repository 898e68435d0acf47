"""Typed kernel calls: mechanism only, standard library only."""
