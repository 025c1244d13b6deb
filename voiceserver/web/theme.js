// Light or dark, before the first paint: what was chosen here, else what the system has.
(() => {
  const system = matchMedia("(prefers-color-scheme: dark)");
  const apply = () => {
    let chosen = "";
    try {
      chosen = localStorage.getItem("voiceserver-theme");
    } catch {
      // A browser that keeps nothing.
    }
    document.documentElement.dataset.theme = chosen || (system.matches ? "dark" : "light");
  };
  system.addEventListener("change", apply);
  addEventListener("storage", apply);
  addEventListener("voiceserver-theme", apply);
  apply();
})();
