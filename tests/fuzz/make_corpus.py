#!/usr/bin/env python3
"""Writes the seeds of the fuzz targets: corpus/<target>/<name>. Run it again after changing a format."""
import seed_files
import seed_peers
import seed_requests

if __name__ == "__main__":
    seed_files.make()
    seed_requests.make()
    seed_peers.make()
