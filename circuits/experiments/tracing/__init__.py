"""What the experiments on tracing share: settings, traces as pieces of work, and how well they predict a reference."""
