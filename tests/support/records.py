"""Files of records."""

import json


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path
