"""Sources that break the protocol of sources, each in its own way: bad://<member>."""

import pandas as pd

from toyplugin.source import ToySource


class Bad(ToySource):
    """A source of 20 cells that is right but for one member."""

    def __init__(self, member):
        super().__init__("toy://20x30")
        self.name, self.member = f"bad://{member}", member
        if member == "n_obs":
            self.n_obs = "20"
        elif member == "fingerprint":
            self.fingerprint = None
        elif member == "var":
            self.var = list(self.var.index)
        elif member == "obs_columns":
            del self.obs_columns

    def obs(self, columns):
        table = super().obs(columns)
        if self.member == "obs":
            return table.iloc[:-1]
        return {column: list(table[column]) for column in table} if self.member == "obs as dict" else table

    def read(self, rows):
        cells = super().read(rows)
        if self.member == "read":
            return cells.to_scipy()
        if self.member == "read one less":
            return cells.slice(0, len(cells) - 1)
        return None if self.member == "read nothing" else cells


def open_bad(addresses, options):
    """What stands behind "bad://"."""
    members = [address.removeprefix("bad://").replace("%20", " ") for address in addresses]
    if members == ["opener"]:
        return [pd.DataFrame()]
    return None if members == ["none"] else [Bad(member) for member in members]
