"""The escape suite: what a hostile job would try, each attempt shown to work where there are no walls.

`attempts` runs inside and outside with the standard library alone, so that nothing here is imported with it.
"""
