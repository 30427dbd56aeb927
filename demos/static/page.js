// Sliders, pickers and veils of the result pages. Everything is delegated, because results come and go.
(() => {
	if (window.ceFolds) return; // put into the page once more: a second listener would undo what the first one does
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

	// A firmer test of the erasure that is shown.
	on("click", ".ce-firmer", (button) => document.getElementById(`erase-firmer-${button.dataset.pictures}`)?.click());

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
		(button.closest(".ce-below") ?? document).querySelectorAll(".ce-sensitive").forEach((f) => {
			f.classList.toggle("ce-shown", shown);
			const veil = f.querySelector(".ce-veil");
			veil?.setAttribute("aria-pressed", String(shown));
			if (veil) veil.querySelector(".ce-veil-word").textContent = shown ? "Hide" : "Show";
		});
	});

	// What folds, tabs and methods show is there from the start; here it is only shown or not. The attributes are ours
	// alone: the page's own code sets classes and styles anew when it likes.
	// Whether a fold is open is known by its name and not by its element, which may be built anew at any time.
	window.ceFolds = new Map();
	const showFolds = () =>
		window.ceFolds.forEach((open, id) => {
			const fold = document.getElementById(id);
			fold?.toggleAttribute("data-open", open);
			fold?.querySelector(".ce-unfold")?.setAttribute("aria-expanded", String(open));
		});
	on("click", ".ce-unfold", (button, event) => {
		if (event.detail > 1) return; // clicked again by somebody who saw nothing happen yet, on a page that is busy
		const { id } = button.closest(".ce-fold");
		window.ceFolds.set(id, !window.ceFolds.get(id));
		showFolds();
	});
	new MutationObserver(showFolds).observe(document, { subtree: true, childList: true });
	window.ceTab = (name) => {
		for (const below of document.querySelectorAll(".ce-below"))
			below.dataset.shown = String(below.id === `below-${name}`);
	};
	window.ceMethod = (prefix, method) => {
		for (const form of document.querySelectorAll(`#${prefix}-methods > .ce-settings`))
			form.dataset.shown = String(form.classList.contains(`ce-of-${method}`));
	};

	// What somebody picked or typed is only ever changed here, from what it is at that moment: an answer of the server
	// is about what it was when it was asked. Each returns the new values of the fields, a list of lists.
	window.cePrune = (ids, known) => [(ids ?? []).filter((id) => (known ?? []).includes(id))];
	// Another kind of concept: its tiles are shown, and what was picked from the lists of other kinds falls away.
	window.ceKind = (known, kind, picked) => {
		document.getElementById("erase-chips").dataset.kind = kind;
		const here = known[kind] ?? [];
		const others = Object.values(known).flat().filter((name) => !here.includes(name));
		return picked.map((names) => [].concat(names ?? []).filter((name) => !others.includes(name)));
	};
	// What was just looked at is picked, once, unless somebody picked something else since the tab was opened.
	window.ceOffer = (ids, { known, looked } = {}) => {
		if (!looked || looked === window.ceOffered || !known.includes(looked)) return window.cePrune(ids, known);
		if (JSON.stringify(ids ?? []) !== window.cePickedWas) return window.cePrune(ids, known);
		window.ceOffered = looked;
		return [[looked]];
	};

	// When this page was last open, by the server's clock; it tells what ended since.
	const read = () => Number(localStorage.getItem("ce-seen")) || 0;
	window.ceSeen = () => String(read());
	let began = null;
	setInterval(() => {
		const now = Number(document.querySelector("#jobs-missed [data-now]")?.dataset.now);
		if (!now) return;
		began ??= performance.now();
		localStorage.setItem("ce-seen", String(Math.max(read(), now + (performance.now() - began) / 1000)));
	}, 1000);
	on("click", ".ce-missed", (button) => {
		window.ceOpen = button.dataset.open;
		document.getElementById("tab-library-button").click();
		document.getElementById("library-open").click();
		const told = button.closest("section");
		button.closest("li").remove();
		if (!told.querySelector("li")) told.hidden = true;
	});

	// When work is done, bring its first sentence into view.
	const calm = matchMedia("(prefers-reduced-motion: reduce)");
	window.ceGoTo = (id) =>
		setTimeout(() => {
			const behavior = calm.matches ? "auto" : "smooth";
			document.getElementById(id)?.scrollIntoView({ behavior, block: "start" });
		}, 150);
	new MutationObserver((changes) => {
		for (const { target, oldValue } of changes) {
			if (target.dataset.state !== "done" || oldValue !== "running") continue;
			window.ceGoTo(target.id.replace(/state$/, "words"));
		}
	}).observe(document, { subtree: true, attributes: true, attributeFilter: ["data-state"], attributeOldValue: true });

	document.documentElement.lang = "en";
})();
