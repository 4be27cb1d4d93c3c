import { visible } from "../../core/output";
import { Output } from "./Output";

/** What a tool is called with, every character of it: nothing hides, nothing runs off the edge. */
export function Arguments({ args }: { args: Record<string, unknown> }) {
  const all = Object.entries(args);
  if (all.length === 0) return <p className="note">No arguments.</p>;
  return (
    <dl className="arguments" data-testid="arguments">
      {all.map(([name, value]) => (
        <div key={name}>
          <dt>{visible(name)}</dt>
          <dd>
            <Output text={visible(typeof value === "string" ? value : JSON.stringify(value, null, 2))} label={name} from="start" isExact />
          </dd>
        </div>
      ))}
    </dl>
  );
}
