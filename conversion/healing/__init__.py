"""Healing: a short training that gives back what a conversion took.

``run.heal`` tells the story: read (``pair``, ``text``), train (``train``), judge (``outcome``),
write (``write``). These rules hold across the files:

- The teacher is frozen. Unless models are sharded, the student shares its frozen weights, so both
  take hardly more memory than one. A teacher whose predictions are stored is deleted before the
  student is loaded: ``TeacherCache.fill`` must be handed the only reference to it.
- Every process calls the collective functions (``all_finite``, ``gathered``, ``measure``,
  ``wait_for_everyone``) in the same order; only the process with ``should_save`` touches the
  output and ``run.json``.
- A training checkpoint is complete once ``trainer_state.json`` is in it. A resumed training gives
  bit for bit what an uninterrupted one gives: the order of windows and the points of the curve do
  not depend on where it stopped.
"""
