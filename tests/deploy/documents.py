"""Reads YAML and prints it as JSON, a list of its documents. With versions of Kubernetes as arguments, each document has
to be valid in each of them, and to hold no field that they do not know."""

import json
import sys

import kubernetes_validate
import yaml

documents = [document for document in yaml.safe_load_all(sys.stdin) if document is not None]
wrong = []
for document in documents:
    for version in sys.argv[1:]:
        try:
            kubernetes_validate.validate(document, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            place = ".".join(str(part) for part in error.path)
            wrong.append(f"{document['kind']}, Kubernetes {version}: {place}: {error.message}")
if wrong:
    sys.exit("\n".join(wrong))
json.dump(documents, sys.stdout)
