"""Reads configurations of version 1, which held all fields of classifiers and translators flat or in `history`."""

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

from .configuration_fields import MOVED
from .configuration_sections import OPTIONAL, READ_BY, SECTIONS

logger = logging.getLogger(__name__)


def converted(config_dict: dict[str, Any]) -> dict[str, Any]:
    """The dictionary of a saved configuration in the present version; one that is not of version 1 is returned as is.

    Optional sections that the saved architecture does not read are left out: version 1 let them hold any values.
    """
    if not _is_version_1(config_dict):
        return config_dict
    values = {key: value for key, value in config_dict.items() if key != "config_version"}
    backbone = {field.name for field in dataclasses.fields(SECTIONS["backbone"])}
    sections: dict[str, dict[str, Any]] = {"backbone": {name: values.pop(name) for name in backbone & values.keys()}}
    for path, section in MOVED.items():
        *parents, name = path.split(".")
        owner = _opened(values, parents)
        if owner is not None and name in owner:
            sections.setdefault(section, {})[name] = owner.pop(name)
    values |= sections
    _leave_out_unread(values)
    return values


def _is_version_1(config_dict: Mapping[str, Any]) -> bool:
    """Whether it is of version 1, or has no version and none of the later sections."""
    version = config_dict.get("config_version")
    return version == 1 or (version is None and not {"backbone", "classifier", "translator"} & config_dict.keys())


def _opened(values: dict[str, Any], parents: list[str]) -> dict[str, Any] | None:
    """The section under a path of names, copied so that it may be changed; None if it is missing or no mapping."""
    for name in parents:
        inner = values.get(name)
        if not isinstance(inner, Mapping):
            return None
        values[name] = values = dict(inner)
    return values


def _leave_out_unread(values: dict[str, Any]) -> None:
    """Removes the optional sections that the saved architecture does not read, and warns if they are not default."""
    architectures = values.get("architectures") or [None]
    reads = READ_BY.get(architectures[0])
    for path, cls in OPTIONAL.items():
        *parents, name = path.split(".")
        owner = _opened(values, parents)
        if reads is None or path in reads or owner is None or name not in owner:
            continue
        section = owner.pop(name)
        default = dataclasses.asdict(cls())
        if isinstance(section, Mapping) and {**default, **section} != default:
            logger.warning(
                "%s does not read the section %s of the saved configuration: ignored", architectures[0], path
            )
