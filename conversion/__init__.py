"""The offline converter: reads MHA, GQA and MQA checkpoints, writes MLA checkpoints."""
