"""YOLO-World fine-tuning on Ray: shards, stream, training, evaluation, AP tables."""

__version__ = "0.1.0"
