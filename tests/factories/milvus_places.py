"""Places of banks in milvus-lite, which name them without loading pymilvus."""

from pathlib import Path


def in_file(folder: Path) -> str:
    """Address of collections of a file, which this process opens."""
    return f"milvus+file:{folder}/lite.db?collection={{}}"
