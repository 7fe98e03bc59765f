"""The server that one writes on the first day: LitServe with nothing added. Kept to show what it does with bad requests.

Run it as `litserve_app`: serve(model, program="course_lib.serving.careless"). Nobody should use it: it batches requests
that it has not looked at. Only its own process opens this module: it imports LitServe. Book: chapter 6, "When it fails:
the same server without care".
"""
import litserve
import numpy as np
import onnxruntime

from .litserve_app import options

__all__ = ["CarelessAPI"]


class CarelessAPI(litserve.LitAPI):
    """One image in each request; whatever arrives goes into the batch."""

    def setup(self, device) -> None:
        """Open the model whose name is on the command line."""
        self.session = onnxruntime.InferenceSession(options().model)

    def batch(self, inputs: list[dict]) -> list[dict]:
        """Leave the requests as they are."""
        return inputs

    def predict(self, x: list[dict]) -> list[dict]:
        """One run for all of them."""
        images = np.array([request["image"] for request in x], dtype=np.float32)
        scores = self.session.run(None, {"images": images})[0]
        return [{"class": int(row.argmax())} for row in scores]

    def unbatch(self, output: list[dict]) -> list[dict]:
        """One answer for each request."""
        return output


if __name__ == "__main__":
    api = CarelessAPI(max_batch_size=max(2, options().batch), batch_timeout=options().wait_ms / 1000)
    server = litserve.LitServer(api, accelerator="cpu")
    server.run(host="127.0.0.1", port=options().port, log_level="critical", generate_client_file=False)
