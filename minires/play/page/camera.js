import { say } from "./speech.js";

const TROUBLES = { NotAllowedError: "cameraRefused", SecurityError: "cameraRefused", NotReadableError: "cameraBusy" };

/** The camera: `done(blob)` gets each picture that is taken, `fail(key)` the key of what went wrong. */
export function camera(done, fail) {
  const video = document.getElementById("video");
  const start = document.getElementById("start");
  const shoot = document.getElementById("shoot");

  function show() {
    const on = video.srcObject !== null;
    start.dataset.word = on ? "cameraStop" : "cameraStart";
    start.textContent = say(start.dataset.word);
    shoot.disabled = !on;
  }

  function stop() {
    for (const track of video.srcObject?.getTracks() ?? []) track.stop();
    video.srcObject = null;
    show();
  }

  async function begin() {
    if (!navigator.mediaDevices) return fail("cameraAbsent");
    try {
      video.srcObject = await navigator.mediaDevices.getUserMedia({ video: true });
      await video.play();
    } catch (error) {
      stop();
      return fail(TROUBLES[error.name] ?? "cameraAbsent");
    }
    show();
  }

  start.addEventListener("click", () => (video.srcObject ? stop() : begin()));
  shoot.addEventListener("click", () => {
    const canvas = document.createElement("canvas");
    canvas.width = video.videoWidth;
    canvas.height = video.videoHeight;
    canvas.getContext("2d").drawImage(video, 0, 0);
    canvas.toBlob(done);
  });
  return { stop };
}
