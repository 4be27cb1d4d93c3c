import { type FormEvent, useState } from "react";
import { api } from "../core/api";

export function Login({ onDone }: { onDone: () => void }) {
  const [token, setToken] = useState("");
  const [problem, setProblem] = useState("");
  const submit = (event: FormEvent) => {
    event.preventDefault();
    api.login(token.trim()).then(onDone, () => setProblem("The server does not know this token."));
  };
  return (
    <main className="login">
      <form onSubmit={submit}>
        <h1>Holdfast</h1>
        <label htmlFor="token">Token</label>
        <input id="token" type="password" autoComplete="current-password" value={token} onChange={(event) => setToken(event.target.value)} />
        {problem && <p role="alert">{problem}</p>}
        <button type="submit" disabled={!token.trim()}>
          Sign in
        </button>
        <p className="hint">
          A token is made with <code>holdfast token create NAME</code>.
        </p>
      </form>
    </main>
  );
}
