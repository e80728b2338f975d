"""Brings MLflow's tables to the server's version; replicas that start together take turns."""

import subprocess
import sys
import time

import psycopg2

LOCK = 3170  # any number that nobody else uses in this database

for _ in range(60):
    try:
        connection = psycopg2.connect("")  # host, database, user and password: libpq's PG* variables
        break
    except psycopg2.OperationalError as error:
        print(f"waiting for the database: {error}".strip(), flush=True)
        time.sleep(5)
else:
    sys.exit("the database did not answer for five minutes")
connection.autocommit = True
connection.cursor().execute("SELECT pg_advisory_lock(%s)", (LOCK,))
sys.exit(subprocess.run(["mlflow", "db", "upgrade", "postgresql+psycopg2://"], check=False).returncode)
