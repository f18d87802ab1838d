"""The run-time checker of annotations in `make check`: beartype, taking ints where floats are annotated (PEP 484)."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
