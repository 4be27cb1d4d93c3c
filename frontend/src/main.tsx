import { QueryClient, QueryClientProvider } from "@tanstack/react-query";
import { StrictMode } from "react";
import { createRoot } from "react-dom/client";
import { App } from "./view/App";
import { applyTheme } from "./view/hooks";
import "./view/style.css";

applyTheme();
const queries = new QueryClient({ defaultOptions: { queries: { retry: false, networkMode: "always" } } });
const root = document.getElementById("root");
if (root) {
  createRoot(root).render(
    <StrictMode>
      <QueryClientProvider client={queries}>
        <App />
      </QueryClientProvider>
    </StrictMode>,
  );
}
