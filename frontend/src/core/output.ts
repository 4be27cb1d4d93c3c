/** What a program wrote or a model asked for, as a text that a browser can bear and a person can trust. */

/** More of a text than this is not shown at once; the whole of it is behind a link. */
export const LONGEST_SHOWN = 100_000;
/** The rest of a longer line is left out of what is shown. */
export const LONGEST_LINE = 2_000;
const LONGEST_GIST = 200;
const PROBE_BYTES = 8_192;
// oxlint-disable-next-line no-control-regex -- these are the characters that steer a terminal
const STEERING = /\u001b(?:\[[0-9;?]*[ -/]*[@-~]|\][^\u0007\u001b]*(?:\u0007|\u001b\\)?|[@-Z\\-_])/g;
const UNSEEN = /(?![\t\n])[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Default_Ignorable_Code_Point}]/gu;
const GIST_KEYS = ["command", "pattern", "path"];

export interface Excerpt {
  text: string;
  /** Lines that are left out. */
  hiddenLines: number;
  /** Whether characters are left out of the lines that are shown, or before or behind all of them. */
  isCut: boolean;
}

/** The first or last lines of a text. */
export function excerpt(text: string, lines: number, from: "start" | "end", longestLine = LONGEST_LINE): Excerpt {
  const near = from === "start" ? text.slice(0, LONGEST_SHOWN) : text.slice(-LONGEST_SHOWN);
  const all = (near.endsWith("\n") ? near.slice(0, -1) : near).split("\n");
  const chosen = from === "start" ? all.slice(0, lines) : all.slice(-lines);
  const isCut = near.length < text.length || chosen.some((line) => line.length > longestLine);
  return { text: chosen.map((line) => cutLine(line, longestLine)).join("\n"), hiddenLines: all.length - chosen.length, isCut };
}

function cutLine(line: string, longest: number): string {
  if (line.length <= longest) return line;
  return `${line.slice(0, longest)}… (${(line.length - longest).toLocaleString("en")} more characters)`;
}

/** What a terminal would show: no colours, and of a line that was written over only what came last. */
export function readable(written: string): string {
  const text = written.includes("\u001b") ? written.replace(STEERING, "") : written;
  return text.includes("\r") ? text.replace(/\r+\n/g, "\n").replace(/[^\n]*\r(?=[^\n])/g, "") : text;
}

/** A text in which characters that hide or turn around what stands beside them are written out. */
export function visible(text: string): string {
  return text.replace(UNSEEN, (sign) => `\\u{${(sign.codePointAt(0) ?? 0).toString(16)}}`);
}

/** An action's output as text. */
export function outputText(output: unknown): string {
  if (output === null || output === undefined) return "";
  return typeof output === "string" ? output : JSON.stringify(output, null, 2);
}

/** The shortest that says what an action is about: its command, its path. */
export function gist(input: Record<string, unknown>): string {
  const named = GIST_KEYS.map((key) => input[key]);
  const text = [...named, ...Object.values(input)].find((value) => typeof value === "string" && value.trim() !== "");
  if (typeof text !== "string") return Object.keys(input).length === 0 ? "" : visible(JSON.stringify(input)).slice(0, LONGEST_GIST);
  const [line = ""] = text.trim().split("\n", 1);
  const isWhole = line.length === text.trim().length && line.length <= LONGEST_GIST;
  return visible(line.slice(0, LONGEST_GIST)) + (isWhole ? "" : " …");
}

/** Whether the gist leaves something of the input out. */
export function isMoreThanGist(input: Record<string, unknown>): boolean {
  return Object.keys(input).length > 1 || gist(input) !== Object.values(input)[0];
}

/** The text of a file's first bytes; null when that is no text. */
export function textOf(bytes: Uint8Array): string | null {
  if (bytes.subarray(0, PROBE_BYTES).includes(0)) return null;
  return new TextDecoder().decode(bytes, { stream: true });
}

/** A link of the server's own, or null: nothing that leads elsewhere. */
export function ownLink(link: string | null): string | null {
  return link && /^\/(?![/\\])/.test(link) ? link : null;
}

/** Arguments as JSON for a person to edit, with what nobody sees written out. */
export function argumentsText(args: Record<string, unknown>): string {
  return JSON.stringify(args, null, 2).replace(UNSEEN, (sign) =>
    Array.from({ length: sign.length }, (_, place) => `\\u${sign.charCodeAt(place).toString(16).padStart(4, "0")}`).join(""),
  );
}

/** The arguments that a person has edited, or what is wrong with them. */
export function editedArguments(text: string): { args: Record<string, unknown> } | { fault: string } {
  try {
    const value: unknown = JSON.parse(text);
    if (typeof value === "object" && value !== null && !Array.isArray(value)) return { args: value as Record<string, unknown> };
    return { fault: "This must be a JSON object: { … }." };
  } catch (error) {
    return { fault: `This is not JSON: ${error instanceof Error ? error.message : String(error)}` };
  }
}
