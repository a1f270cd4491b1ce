"""What others may do with a model: its author says so, nobody else."""

import re

from distill.errors import UserError

LICENSES = (
    "pass what others may do with the model, such as MIT, Apache-2.0, BSD-3-Clause, CC-BY-4.0 or CC0-1.0"
)


def check_license(license: str | None) -> str:
    """The SPDX identifier; a UserError for none, or for what cannot be one."""
    if license is None:
        raise UserError(
            f"license: none given, and a model that is shared needs one; {LICENSES} (--license MIT)"
        )
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+-]*", license):
        raise UserError(f"license: got '{license}', no SPDX identifier; {LICENSES}")
    return license
