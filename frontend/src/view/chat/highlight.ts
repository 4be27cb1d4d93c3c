/** Loaded when the first code block closes. */

import hljs from "highlight.js/lib/common";

export function highlight(code: string, language: string): string | null {
  const name = language.split(/\s/)[0] ?? "";
  if (!hljs.getLanguage(name)) return null;
  return hljs.highlight(code, { language: name, ignoreIllegals: true }).value;
}
