"""Who changes the network while it is severed: a subscription that also sees what was undone again."""

from __future__ import annotations

from rapha.node.posture.airgap import links, nftables
from rapha.node.posture.airgap.model import Mode, Record
from rapha.node.posture.airgap.netlink import NETFILTER, ROUTE, Netlink


class Monitor:
    """Subscribed from before the gap is closed, so that no change falls between two looks."""

    def __init__(self, mode: Mode) -> None:
        """Subscribe; to changes of rules only where there are any of ours.

        Raises:
            OSError: if the kernel has no such groups.
        """
        self._routes = Netlink(ROUTE, links.EVENTS)
        self._rules: Netlink | None = None
        if mode == "nftables":
            try:
                self._rules = Netlink(NETFILTER, nftables.EVENTS)
            except OSError:
                self._routes.close()
                raise

    def close(self) -> None:
        """End the subscription."""
        for netlink in self._open():
            netlink.close()

    @property
    def filenos(self) -> tuple[int, ...]:
        """For a selector."""
        return tuple(netlink.fileno() for netlink in self._open())

    def _open(self) -> tuple[Netlink, ...]:
        return (self._routes,) if self._rules is None else (self._routes, self._rules)

    def drain(self) -> None:
        """Forget what was told so far: it was our own doing, and the kernel is looked at next."""
        for netlink in self._open():
            try:
                netlink.events()
            except OSError:  # events were lost, which is what was asked for
                netlink.events()

    def told(self, record: Record) -> str | None:
        """None if nothing was told since; else why the gap was broken, or empty if that must be looked up."""
        try:
            routes = self._routes.events()
            rules = self._rules.events() if self._rules else []
        except OSError:
            return "more changes than the kernel could tell"
        if not routes and not rules:
            return None
        if any(nftables.ours(event) for event in rules):
            return "our nftables tables were changed"
        numbers = {device.index: device.name for device in record.devices}
        for event in routes:
            if event.type == links.NEWLINK and record.mode == "link":
                one = links.link(event)
                if one.index in numbers and one.up:
                    return f"{numbers[one.index]} was set up"
        return ""
