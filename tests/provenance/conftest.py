import pytest
from signed_runs import copied, ledger_small, operator_key, other_run, signed_run

__all__ = ["copied", "ledger_small", "operator_key", "other_run", "signed_run"]

pytest.importorskip("cryptography", reason="cryptography is not installed; the sign extra has it")
