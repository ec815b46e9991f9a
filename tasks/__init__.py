"""WITH WHAT EFFECT. One file per phase: call core, write artifacts, track."""
