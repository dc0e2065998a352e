"""The offline converter: reads MHA, GQA and MQA checkpoints, writes MLA checkpoints."""

import os

# Before torch starts its threads: by default they spin while they wait for each other, and a
# conversion that shares its cores with anything else then takes many times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
