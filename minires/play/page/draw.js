/** Drawing on a canvas with mouse, finger or keyboard; `done(blob)` gets the picture after each stroke. */
export function drawing(done) {
  const canvas = document.getElementById("canvas");
  const ring = document.getElementById("pen");
  const context = canvas.getContext("2d");
  const pen = { x: canvas.width / 2, y: canvas.height / 2, down: false };

  function clear() {
    context.fillStyle = "#e9e6df"; // a wall, as behind the hands of SIGNS
    context.fillRect(0, 0, canvas.width, canvas.height);
    pen.down = false;
    showPen();
  }

  function lineTo(x, y) {
    context.strokeStyle = document.getElementById("colour").value;
    context.lineWidth = Number(document.getElementById("width").value);
    context.lineCap = context.lineJoin = "round";
    context.beginPath();
    context.moveTo(pen.x, pen.y);
    context.lineTo(x + 0.01, y); // a line of no length would not be drawn, not even as a dot
    context.stroke();
  }

  function move(x, y) {
    if (pen.down) lineTo(x, y);
    pen.x = x;
    pen.y = y;
  }

  function lift() {
    if (!pen.down) return;
    pen.down = false;
    canvas.toBlob(done);
  }

  function place(event) {
    const box = canvas.getBoundingClientRect();
    return [
      ((event.clientX - box.left) / box.width) * canvas.width,
      ((event.clientY - box.top) / box.height) * canvas.height,
    ];
  }

  /** Where the pen stands, for who draws by keyboard. */
  function showPen() {
    ring.style.left = `${(100 * pen.x) / canvas.width}%`;
    ring.style.top = `${(100 * pen.y) / canvas.height}%`;
    ring.classList.toggle("down", pen.down);
  }

  function byKey(event) {
    const steps = { ArrowLeft: [-8, 0], ArrowRight: [8, 0], ArrowUp: [0, -8], ArrowDown: [0, 8] };
    const within = (value, side) => Math.min(Math.max(value, 0), side);
    if (event.key in steps) {
      const [x, y] = steps[event.key];
      move(within(pen.x + x, canvas.width), within(pen.y + y, canvas.height));
    } else if (event.key === " ") {
      if (pen.down) {
        lift();
      } else {
        pen.down = true;
        lineTo(pen.x, pen.y);
      }
    } else {
      return;
    }
    event.preventDefault();
    ring.hidden = false;
    showPen();
  }

  canvas.addEventListener("pointerdown", (event) => {
    ring.hidden = true;
    canvas.setPointerCapture(event.pointerId);
    [pen.x, pen.y] = place(event);
    pen.down = true;
    lineTo(pen.x, pen.y);
  });
  canvas.addEventListener("pointermove", (event) => pen.down && ring.hidden && move(...place(event)));
  canvas.addEventListener("pointerup", lift);
  canvas.addEventListener("pointercancel", lift);
  canvas.addEventListener("keydown", byKey);
  canvas.addEventListener("blur", () => {
    ring.hidden = true;
    lift();
  });
  document.getElementById("clear").addEventListener("click", clear);
  clear();
}
