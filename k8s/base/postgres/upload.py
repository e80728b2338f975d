"""Uploads a database dump to s3://$BACKUP_BUCKET/mlflow/ and reads its size back. Old ones go by the bucket's rules."""

import os
import sys
from datetime import UTC, datetime
from pathlib import Path

import boto3

dump = Path(sys.argv[1])
bucket = os.environ["BACKUP_BUCKET"]
key = f"mlflow/{datetime.now(UTC):%Y-%m-%dT%H%M%SZ}.dump"
s3 = boto3.client("s3")
s3.upload_file(str(dump), bucket, key)
stored = s3.head_object(Bucket=bucket, Key=key)["ContentLength"]
if stored != dump.stat().st_size:
    sys.exit(f"s3://{bucket}/{key}: {stored} bytes arrived of {dump.stat().st_size}")
print(f"s3://{bucket}/{key}: {stored} bytes")
