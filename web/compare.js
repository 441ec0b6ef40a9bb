/** The extension that shows the comparison on Cache Compare nodes after a run. */

import { api } from "../../scripts/api.js";
import { ComparePanel, MIN_HEIGHT } from "./compare_panel.js";
import { showOutput } from "./output_panel.js";

showOutput({
  name: "dual_cache.compare", type: "CacheCompare", widget: "comparison", height: MIN_HEIGHT, width: 460, above: 560,
  read: (output) => (output.dual_cache_compare ? JSON.parse(output.dual_cache_compare[0]) : undefined),
  make() {
    const panel = new ComparePanel((file) => api.apiURL(`/view?${new URLSearchParams(Object.entries(file))}`));
    return {
      element: panel.element, show: (data) => panel.show(data), connect: () => panel.connect(), disconnect: () => panel.disconnect(),
      keepsWheel: () => panel.figures.contains(document.activeElement),
    };
  },
});
