"""The rules for groups of parameters that the options stand for."""

import argparse
from typing import Any

from optlab import groups
from optlab.cli._errors import value_errors


def group_rules(options: argparse.Namespace) -> list[Any] | None:
    """Return the rules for `optlab.groups.partition`; None without any of the options."""
    rules: list[Any] = []
    with value_errors():
        for pattern, values in options.group:
            own = groups.frozen() if values is None else groups.group(**values)
            rules.append((pattern, own))
        if rules:
            rules.append((..., groups.group()))
        if options.unfreeze:
            rules.append(groups.gradual_unfreezing([*options.unfreeze, (..., 0)]))
        if options.layer_decay is not None:
            rules.append(groups.layerwise_decay(options.layer_decay))
        if options.no_decay:
            rules.append(groups.no_decay())
    return rules or None
