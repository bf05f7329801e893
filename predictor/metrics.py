"""What Prometheus may scrape on KServe's /metrics. Labels hold no prompt, caller or request id."""

from prometheus_client import Counter, Gauge

forwards = Counter("predictor_forwards", "Forwards of the denoiser")
forward_rows = Counter("predictor_forward_rows", "Rows in forwards of the denoiser that belonged to a request")
out_of_memory = Counter("predictor_out_of_memory", "Times the device had not enough memory")
row_limit = Gauge("predictor_row_limit", "Rows of default size that share one forward at most; 0: requests take turns")
mode = Gauge("predictor_mode", "1 for how requests are served: shared, or turns, and why", ["mode", "reason"])
start_seconds = Gauge("predictor_start_seconds", "Seconds of each phase from process start to ready", ["phase"])
