// Shows one frame at a time; without this script all frames are there, one below the other.
for (const box of document.querySelectorAll("[data-frames]")) {
  const slider = box.querySelector("input[type=range]");
  if (!slider) continue;
  const frames = [...box.querySelectorAll(".frame")];
  const show = () => {
    const label = frames[slider.value].dataset.label;
    frames.forEach((frame, number) => { frame.hidden = number !== Number(slider.value); });
    slider.setAttribute("aria-valuetext", label);
    box.querySelector("output").textContent = label;
  };
  slider.addEventListener("input", show);
  box.querySelector(".slider").hidden = false;
  show();
}
