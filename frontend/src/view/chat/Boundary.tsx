import { Component, type ReactNode } from "react";

/** One message that cannot be rendered does not take the page with it: it is shown as it is written. */
export class Boundary extends Component<{ text: string; children: ReactNode }, { isBroken: boolean }> {
  override state = { isBroken: false };

  static getDerivedStateFromError() {
    return { isBroken: true };
  }

  override render() {
    return this.state.isBroken ? <pre className="plain">{this.props.text}</pre> : this.props.children;
  }
}
