"""The pipeline's side of the disclosure ledger: what a job may cost, that it is charged, and what is lowered.

A job is charged its worst case before its first record, and what left is settled when it has ended. Where
that doesn't happen (a crash, a lost process, a full disk) the worst case stays charged: nobody knows better.
"""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rapha.node.datasets.ledger.entries import Released
from rapha.node.gates import cost
from rapha.node.gates.consent import Consented
from rapha.node.gates.intake import Admitted
from rapha.node.node import Node
from rapha.node.recover import LEDGERED
from rapha.spec.disclosure import Balance
from rapha.spec.refusals import Refused
from rapha.spec.verdicts import Scope


class Charge:
    """One job's charge. As a context manager it settles a job that ended early: nothing left but its end.

    Attributes:
        price: the worst case.
        balance: the dataset's, once the job is charged.
    """

    def __init__(self, node: Node, admitted: Admitted, consented: Consented) -> None:
        self._node, self._admitted, self._data = node, admitted, consented.data
        self.price = consented.request.price
        self.balance: Balance | None = None
        self._settled = False

    def reserve(self) -> None:
        """Charge the worst case; no record may be served before.

        Raises:
            Refused: `budget.disclosure`, `privacy.cohort_refused`, `node.*`.
        """
        self.balance = self._data.reserve(self.price)
        self._note(self.balance)

    def settle(self, scope: Scope) -> None:
        """The job was released in this scope."""
        if scope == "all":
            self._settle(self.price.bits, "all")
        else:
            self._settle(cost.worst(self._node, self._admitted, scope).bits, "metrics")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Exception) and self.balance is not None and not self._settled:
            self._settle(cost.ended(self._node, self._admitted), "nothing")

    def _settle(self, bits: int, released: Released) -> None:
        """Lower the charge. What goes wrong is journalled: it leaves the worst case, which is no loss."""
        self._settled = True
        try:
            self._note(self._data.settle(min(bits, self.price.bits), released))
        except Refused as refused:
            self._node.journal.append("trouble", self._admitted.id, code=refused.code, detail=refused.detail)

    def _note(self, balance: Balance) -> None:
        self._node.journal.append(
            LEDGERED,
            self._admitted.id,
            dataset=balance.dataset,
            entries=balance.entries,
            head=balance.head,
        )
