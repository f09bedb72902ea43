"""Reaching a bucket: `s3://`, `gs://`, `az://`. Credentials and endpoint come from the environment, never from us."""

import os
from datetime import timedelta
from typing import Any

from featstore.errors import StoreError
from featstore.store.places.network import reason

RETRIES = {"max_retries": 5, "retry_timeout": timedelta(minutes=2)}
"""An answer that does not come within obstore's 30 s counts as one."""


def open_bucket(url: str) -> Any:
    """The folder of a bucket that a URL means, as obstore has it.

    Raises:
        StoreError: obstore is not installed, does not know such a URL, or the URL has a password in it.
    """
    try:
        from obstore.store import from_url
    except ImportError as error:
        raise StoreError(f"{url}: reaching a bucket needs one more package: pip install 'featstore[remote]'") from error
    check_url(url)
    # Obstore knows the account from the environment as well, and panics when it is asked for its name.
    account = {"account_name": azure_account(url)} if url.startswith("az://") else {}
    try:
        return from_url(url, retry_config=RETRIES, **account)  # type: ignore[call-overload]
    except Exception as error:  # obstore's own tree of errors, one for each cloud
        raise StoreError(f"{url} cannot be opened: {reason(str(error))}") from error


def check_url(url: str) -> None:
    """Refuse a URL with a password in it: it would end up in messages, histories and provenance.

    Raises:
        StoreError: it has one.
    """
    scheme, _, rest = url.partition("://")
    if "@" in rest.partition("/")[0]:
        raise StoreError(
            f"{scheme}://...: a URL holds no user name or password; those come from the environment, as "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )


def s3_settings() -> dict[str, str]:
    """Endpoint and region as the environment says, where it does, by the names that obstore looks for."""
    found = {
        "endpoint": os.environ.get("AWS_ENDPOINT_URL_S3", os.environ.get("AWS_ENDPOINT_URL")),
        "region": os.environ.get("AWS_REGION", os.environ.get("AWS_DEFAULT_REGION")),
    }
    return {name: value for name, value in found.items() if value}


def azure_account(url: str) -> str:
    """The account that holds a container; az://CONTAINER/PATH does not say it.

    Raises:
        StoreError: nor does the environment.
    """
    account = os.environ.get("AZURE_STORAGE_ACCOUNT_NAME", os.environ.get("AZURE_STORAGE_ACCOUNT", ""))
    if not account:
        raise StoreError(f"{url}: set AZURE_STORAGE_ACCOUNT_NAME to the account of the container")
    return account


def split_url(url: str) -> tuple[str, str, str]:
    """Scheme, bucket and path of a URL."""
    scheme, _, rest = url.partition("://")
    bucket, _, path = rest.partition("/")
    return scheme, bucket, path.strip("/")
