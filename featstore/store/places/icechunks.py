"""Icechunk itself: imported when it is needed, and told where a place is.

Credentials and endpoint come from the environment, and are not kept.
"""

import os
from pathlib import Path
from typing import Any

from featstore.errors import StoreError
from featstore.store.places.bucket import azure_account, check_url, s3_settings, split_url


def import_icechunk() -> Any:
    """The package, quiet.

    Raises:
        StoreError: it is not installed.
    """
    try:
        import icechunk
    except ImportError as error:
        raise StoreError("a shared repository needs one more package: pip install 'featstore[sharing]'") from error
    # It warns of folders, which a lock takes care of, and draws boxes on the user's terminal.
    os.environ.setdefault("ICECHUNK_LOG", "error")
    icechunk.set_logs_filter(os.environ["ICECHUNK_LOG"])
    return icechunk


def retrying() -> Any:
    """How often Icechunk asks again where the answer is an error."""
    icechunk = import_icechunk()
    retries = icechunk.StorageRetriesSettings(max_tries=5, initial_backoff_ms=100, max_backoff_ms=3000)
    return icechunk.RepositoryConfig(storage=icechunk.StorageSettings(retries=retries))


def storage_of(name: str) -> Any:
    """How it reaches a folder or a URL.

    Raises:
        StoreError: the URL is of an unknown kind or has a password in it, or the environment lacks the account.
    """
    icechunk = import_icechunk()
    if "://" not in name:
        return icechunk.local_filesystem_storage(str(Path(name).absolute()))
    check_url(name)
    scheme, bucket, prefix = split_url(name)
    if scheme == "s3":
        settings = s3_settings()
        return icechunk.s3_storage(
            bucket=bucket,
            prefix=prefix,
            region=settings.get("region"),
            endpoint_url=settings.get("endpoint"),
            allow_http=os.environ.get("AWS_ALLOW_HTTP", "").lower() in ("1", "true", "yes"),
            force_path_style="endpoint" in settings,
            from_env=True,
        )
    if scheme == "gs":
        return icechunk.gcs_storage(bucket=bucket, prefix=prefix, from_env=True)
    if scheme == "az":
        return icechunk.azure_storage(account=azure_account(name), container=bucket, prefix=prefix, from_env=True)
    raise StoreError(f"{name}: unknown kind of URL; say s3://, gs:// or az://, or name a folder")
