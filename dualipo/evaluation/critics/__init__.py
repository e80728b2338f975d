"""Critics on the record: any critic held against labelled sets, with everything stated that its accuracy depends on.

`sets.py` reads labels, `answers.py` gets the critic's answers, `measures.py` makes numbers of them, `writing.py` files,
and `record.py` does one after the other.
"""
