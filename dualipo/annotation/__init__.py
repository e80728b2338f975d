"""People in the loop: a page on which clips are rated and compared, labels out of it, and blind studies of two
generators (docs/annotate.md).

`sources.py` finds what to ask, `session.py` keeps one session's items and answers, `assignment.py` decides who is asked
what, `server.py` and `page.*` show it, `export.py` writes labels, `report.py` and `study.py` say what came out.
"""
