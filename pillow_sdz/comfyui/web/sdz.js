// An .sdz file that is dropped on the canvas, or opened, restores its workflow.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

app.registerExtension({
  name: "pillow-sdz",
  setup() {
    const others = app.handleFile.bind(app);
    app.handleFile = async (file, ...rest) => {
      if (!file?.name?.toLowerCase().endsWith(".sdz")) return others(file, ...rest);
      const answer = await api.fetchApi("/sdz/workflow", { method: "POST", body: file });
      const found = await answer.json();
      if (found.workflow) return app.loadGraphData(found.workflow, true, true, file.name);
      if (found.prompt) return app.loadApiJson(found.prompt, file.name);
      return others(file, ...rest);
    };
  },
});
