// @vitest-environment jsdom
import { describe, expect, it } from "vitest";
import { sanitized } from "./sanitize";

function page(html: string): HTMLElement {
  const box = document.createElement("div");
  box.innerHTML = sanitized(html);
  return box;
}

describe("what a model writes", () => {
  it("runs nothing", () => {
    const box = page('<script>x</script><a href="javascript:x">a</a><p onclick="x">b</p><svg onload="x"></svg><iframe src="/"></iframe>');
    expect(box.innerHTML).not.toMatch(/script|onclick|onload|iframe/);
  });

  it.each(["class", "style", "id", "role", "aria-label", "tabindex", "data-testid"])("cannot look like the page's own: %s", (name) => {
    expect(page(`<p ${name}="x">text</p>`).querySelector("p")?.hasAttribute(name)).toBe(false);
  });

  it("loads no picture from elsewhere, and links to it", () => {
    const box = page('<p><img src="https://example.invalid/a.png" alt="tide"></p>');
    expect(box.querySelector("img")).toBeNull();
    const link = box.querySelector("a");
    expect(link?.getAttribute("href")).toBe("https://example.invalid/a.png");
    expect(link?.textContent).toBe("Image: tide");
    expect(link?.rel).toContain("noopener");
  });

  it.each(["javascript:x", "data:image/svg+xml,<svg onload=x>", "//example.invalid/a", "data:text/html,x"])("makes no link of a picture at %s", (address) => {
    const box = page(`<img src="${address}" alt="a">`);
    expect(box.querySelector("img, a")).toBeNull();
  });

  it("shows a picture that is in the text itself", () => {
    expect(page('<img src="data:image/png;base64,AAAA" alt="dot">').querySelector("img")?.alt).toBe("dot");
  });

  it("opens links elsewhere, without telling where from", () => {
    const link = page('<a href="https://example.invalid/">a</a>').querySelector("a");
    expect(link?.target).toBe("_blank");
    expect(link?.rel).toBe("noopener noreferrer nofollow");
  });

  it("keeps the boxes of a list of tasks", () => {
    const box = page('<ul><li><input type="checkbox" checked disabled> done</li><li><input type="checkbox" disabled> open</li></ul>');
    expect(box.textContent).toContain("☑");
    expect(box.textContent).toContain("☐");
    expect(box.querySelector("input")).toBeNull();
  });
});
