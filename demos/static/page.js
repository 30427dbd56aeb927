// Sliders, pickers and veils of the result pages. Everything is delegated, because results come and go.
(() => {
	const on = (type, selector, act) =>
		document.addEventListener(type, (event) => {
			const found = event.target.closest?.(selector);
			if (found) act(found, event);
		});

	// The cut between before and after follows the range input, so arrow keys work as well.
	on("input", ".ce-cut", (range) => {
		range.closest(".ce-slide").style.setProperty("--cut", `${range.value}%`);
	});

	// Another picture in the slider.
	on("click", ".ce-pick", (pick) => {
		const viewer = pick.closest(".ce-viewer");
		viewer.querySelectorAll(".ce-slide").forEach((s) => (s.hidden = s.dataset.n !== pick.dataset.n));
		viewer.querySelectorAll(".ce-pick").forEach((p) => p.setAttribute("aria-pressed", String(p === pick)));
	});

	// Sensitive pictures stay blurred until asked for.
	on("click", ".ce-veil", (button) => {
		const figure = button.closest(".ce-sensitive");
		const shown = figure.classList.toggle("ce-shown");
		button.setAttribute("aria-pressed", String(shown));
		button.querySelector(".ce-veil-word").textContent = shown ? "Hide" : "Show";
	});
	on("click", ".ce-unveil-all", (button) => {
		const shown = button.getAttribute("aria-pressed") !== "true";
		button.setAttribute("aria-pressed", String(shown));
		button.textContent = shown ? "Blur sensitive pictures" : "Show all sensitive pictures";
		(button.closest(".tabitem") ?? document).querySelectorAll(".ce-sensitive").forEach((f) => {
			f.classList.toggle("ce-shown", shown);
			const veil = f.querySelector(".ce-veil");
			veil?.setAttribute("aria-pressed", String(shown));
			if (veil) veil.querySelector(".ce-veil-word").textContent = shown ? "Hide" : "Show";
		});
	});

	// When work is done, bring its first sentence into view.
	const calm = matchMedia("(prefers-reduced-motion: reduce)");
	new MutationObserver((changes) => {
		for (const { target, oldValue } of changes) {
			if (target.dataset.state !== "done" || oldValue !== "running") continue;
			const words = document.getElementById(target.id.replace(/state$/, "words"));
			setTimeout(() => words?.scrollIntoView({ behavior: calm.matches ? "auto" : "smooth", block: "start" }), 150);
		}
	}).observe(document, { subtree: true, attributes: true, attributeFilter: ["data-state"], attributeOldValue: true });

	document.documentElement.lang = "en";
})();
