// A stage's line follows its slider, and both labels go before their pictures do. before: what the left picture is.
function followSlider(stage, before) {
  const slider = stage.querySelector("input");
  const [left, right] = stage.querySelectorAll(".tag");
  const show = () => {
    const at = Number(slider.value);
    stage.style.setProperty("--at", at + "%");
    slider.setAttribute("aria-valuetext", Math.round(at) + " percent " + before);
    left.style.opacity = at < 12 ? 0 : 1;
    right.style.opacity = at > 88 ? 0 : 1;
  };
  slider.addEventListener("input", show);
  slider.addEventListener("keydown", event => {  // a step of a mouse would be too small for a key
    const step = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1 }[event.key];
    if (!step || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    slider.value = Number(slider.value) + step * (event.shiftKey ? 0.1 : 2);
    slider.dispatchEvent(new Event("input"));
  });
  show();  // a browser may have kept where it stood
}
