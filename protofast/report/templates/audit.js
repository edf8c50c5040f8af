// The report works without this script: each picture has its own switch. It adds switches for all
// pictures of a section at once, and a click on a picture shows its next version.
(() => {
  for (const section of all(".audit-of")) {
    const group = one(".all-shots", section);
    const shots = all(".switched", section);
    const buttons = group ? all("button", group) : [];
    const press = (chosen) => {
      for (const button of buttons) button.setAttribute("aria-pressed", String(button === chosen));
      section.classList.toggle("beside", Boolean(chosen) && "showAll" in chosen.dataset);
    };
    if (group) group.hidden = false;
    for (const button of buttons) {
      button.addEventListener("click", () => {
        press(button);
        for (const shot of shots) {
          for (const input of all("input", shot)) {
            if (input.dataset.version === button.dataset.show) input.checked = true;
          }
        }
      });
    }
    for (const shot of shots) {
      const inputs = all("input", shot);
      shot.addEventListener("change", () => press(null));
      one(".stack", shot).addEventListener("click", () => {
        if (section.classList.contains("beside")) return;
        const next = (inputs.findIndex((input) => input.checked) + 1) % inputs.length;
        inputs[next].checked = true;
        press(null);
      });
    }
  }
})();
