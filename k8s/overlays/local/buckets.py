"""Makes the three buckets where they are missing, once the object store answers."""

import os
import time

import boto3
from botocore.exceptions import BotoCoreError, ClientError

s3 = boto3.client("s3")
for attempt in range(60):
    try:
        present = {bucket["Name"] for bucket in s3.list_buckets()["Buckets"]}
        break
    except (BotoCoreError, ClientError) as error:
        if attempt == 59:
            raise
        print(f"waiting for the object store: {error}", flush=True)
        time.sleep(5)
for name in (os.environ[key] for key in ("MLFLOW_BUCKET", "PIPELINE_BUCKET", "BACKUP_BUCKET")):
    if name not in present:
        s3.create_bucket(Bucket=name)
    print(f"{name}: {'there' if name in present else 'made'}")
